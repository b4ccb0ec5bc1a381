"""The contract that every transport keeps, both ends in one process."""

from __future__ import annotations

import asyncio

def test_moves(wire):
    async def main():
        async with wire.pair() as pair:
            moves = pair.random_moves(64)
            await asyncio.wait_for(pair.move(1, moves), 10)
            assert pair.has_arrived(moves)
    asyncio.run(main())
