throw new TypeError("x")
