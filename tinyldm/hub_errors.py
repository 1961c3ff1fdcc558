"""What the errors of the Hub's client mean, for the one line that a user reads."""

from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled


def why(error: BaseException) -> str:
    """The reason for an error of the Hub's client or of diffusers, in one line. A token in it is taken out."""
    found, token = reason(error), get_token()
    text = str(found) if isinstance(found, OSError | HTTPError | ValueError | RuntimeError) else repr(found)
    if isinstance(found, HfHubHTTPError) and found.server_message:
        text = f"{found.response.status_code}: {found.server_message}"
    return " ".join((text.replace(token, "***") if token else text).split()) or type(found).__name__


def reason(error: BaseException) -> BaseException:
    """What the Hub or the network said; the libraries wrap it in errors that say that something happened."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) and inner not in chain:
        chain.append(inner)
    for kind in (HfHubHTTPError, HTTPError, OfflineModeIsEnabled):
        for found in chain:
            if isinstance(found, kind):
                return found
    return error
