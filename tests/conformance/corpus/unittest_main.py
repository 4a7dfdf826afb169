import unittest
class T(unittest.TestCase):
    def test_a(self):
        self.assertEqual(1, 1)
    def test_name(self):
        self.assertEqual(T.__module__, "__main__")
print("run")
result = unittest.main(exit=False, argv=["x"], testRunner=unittest.TextTestRunner(stream=open("/dev/null", "w")))
print(result.result)
