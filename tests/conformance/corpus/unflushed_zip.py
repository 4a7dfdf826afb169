import zipfile
z = zipfile.ZipFile("out.zip", "w")
z.writestr(zipfile.ZipInfo("name", (2020, 1, 1, 0, 0, 0)), "data")
# output: out.zip
