# stdin: data\n
print(open(0).read())
