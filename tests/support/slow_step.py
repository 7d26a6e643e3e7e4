"""A variant that does the work three times over: what a bench must tell apart."""

from sordino.client.bench.ours import PlainStep


class Thrice(PlainStep):
    def step(self):
        for _ in range(3):
            super().step()


def thrice(work, variant, cache):
    return Thrice(work, variant, cache)
