import logging
import time
print(logging.getLogger().handlers, logging.lastResort, logging.root.level)
logging.warning("to stderr")
logging.basicConfig(format="%(module)s %(filename)s %(lineno)d %(funcName)s %(processName)s %(message)s")
logging.error("formatted", stack_info=True)
print(time.time() - logging.LogRecord("n", 1, "p", 1, "m", (), None).relativeCreated / 1000 > time.time() - 30)
