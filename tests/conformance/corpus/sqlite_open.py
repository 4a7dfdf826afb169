import sqlite3
db = sqlite3.connect("data.db")
db.execute("create table t(x)")
db.execute("insert into t values (1)")
import os
print(sorted(os.listdir(".")))
# output: data.db-journal
