"""Names of built-in networks."""


def plain_twin(name: str) -> str:
    """The same network without shortcuts; a plain network's own name."""
    if name.startswith("simple-block"):
        return "simple-block-plain"
    head, *options = name.split("-")
    kept = [o for o in options if o not in ("a", "b", "c", "residual", "plain")]
    plain = ["plain"] if head.startswith("simple") else []
    return "-".join([head.replace("resnet", "plain"), *plain, *kept])
