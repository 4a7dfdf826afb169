print("carriage", __doc__)
print("return")
