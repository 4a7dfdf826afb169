import cProfile
import pstats
profile = cProfile.Profile()
profile.enable()
sum(range(10))
profile.disable()
print(sorted(key[2] for key in pstats.Stats(profile).stats))
