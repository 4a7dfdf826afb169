import code
console = code.InteractiveConsole()
console.push("1/0")
print("clean end")
