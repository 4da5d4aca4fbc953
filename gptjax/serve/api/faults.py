"""What is wrong with a request, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import logging
import traceback

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from gptjax.errors import UserError
from gptjax.serve import jobs

RETRY_SECONDS = 1  # that an overloaded server asks for
KINDS = {  # HTTP status: OpenAI's type of an error
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    500: "server_error",
    503: "unavailable_error",
}
log = logging.getLogger("gptjax.serve")


class ApiError(Exception):
    """status: HTTP's. param: the field that is wrong. code: a word that programs look for."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict:
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def wrong(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400."""
    return ApiError(400, message, param=param, code=code)


def of_exception(error: Exception) -> ApiError:
    """What a client is told of an exception; one that we did not foresee is logged, without what it says: that may be a
    prompt."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return wrong(str(error))
    if isinstance(error, jobs.Full):
        return ApiError(503, "as many requests wait as may; try again in a moment.", code="overloaded")
    if isinstance(error, jobs.Draining):
        return ApiError(503, "this server is about to stop; send the request to another.", code="draining")
    if isinstance(error, jobs.Failed):
        return ApiError(503, "the engine has failed and takes nothing more; see /health.", code="engine_failed")
    if isinstance(error, HTTPException):
        told = {
            404: "there is no such address; /docs lists those there are.",
            405: "this address takes another method.",
        }
        return ApiError(error.status_code, told.get(error.status_code, error.detail))
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s in\n%s", type(error).__name__, frames.rstrip())
    return ApiError(500, f"something went wrong in the server ({type(error).__name__}); its log says where.")


def answered(error: Exception) -> JSONResponse:
    told = of_exception(error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if told.status == 503 else {}
    headers |= {"WWW-Authenticate": "Bearer"} if told.status == 401 else {}
    return JSONResponse(told.body, told.status, headers)


async def handle(request: Request, error: Exception) -> JSONResponse:
    return answered(error)
