"""In which order configurations take their turns, so that none profits from its place."""

from __future__ import annotations

import random


def turn_orders(count: int, rounds: int, seed: int) -> list[list[int]]:
    """The order of `count` configurations in each round.

    Every other order is drawn at random, and the one behind it is its reverse. Within such a pair each configuration
    follows each of its neighbours once and precedes it once, and the mean place of all is the same: what heats the
    machine, or empties its caches, in front of a configuration does so for its neighbour as well. A fixed or a rotating
    order would let one always run behind the same other.
    """
    generator = random.Random(seed)  # noqa: S311
    orders: list[list[int]] = []
    for turn in range(rounds):
        if turn % 2:
            orders.append(orders[-1][::-1])
        else:
            order = list(range(count))
            generator.shuffle(order)
            orders.append(order)
    return orders
