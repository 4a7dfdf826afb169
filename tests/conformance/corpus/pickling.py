import pickle
class Point:
    def __init__(self, x): self.x = x
data = pickle.dumps([Point(3), Point])
print(data, pickle.loads(data)[0].x)
