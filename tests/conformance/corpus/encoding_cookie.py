# coding: latin-1
print("plain", ascii("é"))
