import dataclasses
import enum
import typing
@dataclasses.dataclass
class P:
    x: int = 1
    y: "typing.Optional[P]" = None
class E(enum.Enum):
    A = 1
print(P(2, P()), E.A, typing.get_type_hints(P), P.__module__, P.__qualname__)
