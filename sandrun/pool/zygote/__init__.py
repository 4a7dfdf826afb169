"""Inside the sandbox: PID 1, what becomes the job, and what serves it. Imports neither
asyncio nor logging nor h11: every import is on every job's bill.
"""
