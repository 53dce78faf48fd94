"""A request that is not fulfilled."""


class Refusal(Exception):
    """What a request gets in place of an answer: a status of HTTP, a line of cause, of remedy."""

    def __init__(self, status: int, cause: str, remedy: str):
        super().__init__(cause)
        self.status, self.cause, self.remedy = status, cause, remedy
