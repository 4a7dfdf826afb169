print("ü € 😀 \u202e", "\N{SNOWMAN}" * 10)
try:
    print("\ud800")
except UnicodeEncodeError as error:
    print(error)
import sys
sys.stderr.write("\udcff\ud800\n")
