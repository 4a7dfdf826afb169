error = ValueError("x")
getattr(error, "add_note", print)("a note")
raise error
