import asyncio
async def main():
    await asyncio.sleep(0.001)
    process = await asyncio.create_subprocess_exec("/bin/echo", "hi", stdout=asyncio.subprocess.PIPE)
    print(await process.communicate())
    async def agen():
        try:
            yield 1
        finally:
            print("agen closed")
    async for x in agen():
        break
    return 7
print(asyncio.run(main()))
