import json, re, decimal, datetime, collections, itertools, math, string, uuid, hashlib, base64, csv
print(json.dumps({"a": [1, 2.5, None]}), re.sub("a+", "b", "caat"), decimal.Decimal("0.1") * 3)
print(datetime.date(2020, 1, 2).isoformat(), collections.Counter("abca"), math.pi)
print(uuid.uuid5(uuid.NAMESPACE_DNS, "x"), hashlib.sha256(b"x").hexdigest(), base64.b64encode(b"x"))
