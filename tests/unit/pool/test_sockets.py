"""What connections hold that nobody has accepted, by the kernel's own tables."""

from __future__ import annotations

import pytest

from sandrun.pool.zygote.sockets import held_in, may_hold_much

STAT = """sockets: used 40
TCP: inuse {} orphan 2 tw {} alloc 9 mem {}
UDP: inuse 1 mem 9999999
"""
STAT6 = "TCP6: inuse {}\nUDP6: inuse 9999999\n"
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"


def row(state: str, sends: int, receives: int, inode: int) -> str:
    return (
        f"   0: 0100007F:9C41 0100007F:B4D2 {state} {sends:08X}:{receives:08X} "
        f"00:00000000 00000000  1000        0 {inode} 1 0000000000000000 20 4 0 10 -1"
    )


@pytest.mark.parametrize(
    ("inuse", "waiting", "pages", "inuse6", "much"),
    [
        (0, 0, 0, 0, False),
        (15, 0, 1 << 20, 0, False),
        (5, 5, 8193, 6, True),
        (5, 5, 8192, 6, False),
        (4000, 4000, 0, 192, False),
        (4000, 4000, 0, 193, True),
    ],
)
def test_they_are_listed_when_there_are_many_or_tcp_holds_much(
    inuse: int, waiting: int, pages: int, inuse6: int, much: bool
) -> None:
    stat, stat6 = STAT.format(inuse, waiting, pages), STAT6.format(inuse6)
    assert may_hold_much(stat, stat6, page_bytes=4096) is much


def test_what_a_descriptor_leads_to_is_the_kernel_s_to_charge_but_for_the_socket() -> None:
    assert held_in([HEAD, row("0A", 0, 100, 77), row("01", 5, 1 << 20, 78)]) == 1024


def test_counting_ends_when_there_is_too_much() -> None:
    assert held_in([row("01", 0, 20 << 20, 0)] * 9) == 2 * ((20 << 20) + 4096)


def test_what_none_leads_to_is_counted_with_its_data() -> None:
    rows = [row("08", 10, 1 << 20, 0), row("01", 0, 0, 0), row("06", 0, 0, 0), "", "junk"]
    assert held_in(rows) == 2 * 4096 + 10 + (1 << 20) + 1024
