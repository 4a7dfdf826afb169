# file: helper.py=class D:\n    def __del__(self): print('helper freed')\nkeep = D()\n
import helper
print("end", helper.__name__)
