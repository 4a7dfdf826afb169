import asyncio
loop = asyncio.new_event_loop()
future = loop.create_future()
future.set_exception(ValueError("nobody looked"))
