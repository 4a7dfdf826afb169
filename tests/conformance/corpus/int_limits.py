import sys
print(len(str(10**4000)), getattr(sys, "get_int_max_str_digits", lambda: 0)())
print(str(10**5000))
