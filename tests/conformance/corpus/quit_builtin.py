print("quitting")
quit(2)
