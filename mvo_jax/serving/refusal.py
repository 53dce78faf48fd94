"""A request that is not fulfilled."""


class Refusal(Exception):
    """What a request gets in place of an answer.

    Attributes:
        status: of HTTP.
        cause: one line.
        remedy: one line.
    """

    def __init__(self, status: int, cause: str, remedy: str):
        super().__init__(cause)
        self.status, self.cause, self.remedy = status, cause, remedy
