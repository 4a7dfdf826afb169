"""What connections hold that nobody has accepted, by the kernel's own tables."""

from __future__ import annotations

from sandrun.pool.zygote.sockets import held_in, sockets_in

STAT = """sockets: used 40
TCP: inuse 5 orphan 2 tw 7 alloc 9 mem 3
UDP: inuse 1 mem 0
"""
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"


def row(state: str, sends: int, receives: int, inode: int) -> str:
    return (
        f"   0: 0100007F:9C41 0100007F:B4D2 {state} {sends:08X}:{receives:08X} "
        f"00:00000000 00000000  1000        0 {inode} 1 0000000000000000 20 4 0 10 -1"
    )


def test_sockets_are_counted_with_those_that_wait() -> None:
    assert sockets_in(STAT) == 12
    assert sockets_in("TCP6: inuse 4\nUDP6: inuse 0\n") == 4
    assert sockets_in("") == 0


def test_what_a_descriptor_leads_to_is_the_kernel_s_to_charge_but_for_the_socket() -> None:
    assert held_in([HEAD, row("0A", 0, 100, 77), row("01", 5, 1 << 20, 78)]) == 1024


def test_counting_ends_when_there_is_too_much() -> None:
    assert held_in([row("01", 0, 20 << 20, 0)] * 9) == 2 * ((20 << 20) + 4096)


def test_what_none_leads_to_is_counted_with_its_data() -> None:
    rows = [row("08", 10, 1 << 20, 0), row("01", 0, 0, 0), row("06", 0, 0, 0), "", "junk"]
    assert held_in(rows) == 2 * 4096 + 10 + (1 << 20) + 1024
