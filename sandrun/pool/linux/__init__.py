"""Linux as typed Python: mechanism without opinion."""
