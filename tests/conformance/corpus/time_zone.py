# env: TZ=America/New_York
import time
print(time.tzname, time.timezone, time.altzone, time.daylight)
print(time.strftime("%Z %z", time.localtime(0)), time.localtime(1e9))
