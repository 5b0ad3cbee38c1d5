"""The API, independent of wire formats: the classes that every door calls, and their arguments and results.

A door wraps each call in `Accounting.call`, and converts between its wire format and `Service`.
"""

from alignserve_server.access.keys import Scope
from alignserve_server.api.accounting import (
    Accounting,
    CallScope,
    IncomingCall,
    MethodMetrics,
    code_of_cancellation,
    internal_error,
    kinds_of_calls,
)
from alignserve_server.api.limits import LabelQuery, RequestLimits
from alignserve_server.api.method_rules import ANY_SCOPE, MethodRules
from alignserve_server.api.quantization import pack_signs, quantize_int8
from alignserve_server.api.queries import QueryTerm
from alignserve_server.api.readiness import Readiness, State
from alignserve_server.api.service import Compared, QueryEmbeddings, ResponseBound, Service, ServiceInfo
from alignserve_server.batching.call import CallContext, FieldPaths, Timings
from alignserve_server.model.encoder import ImageInput, ModelInfo, PixelArray, TokenizedText
from alignserve_server.model.retrieval import Comparisons
from alignserve_server.model.zero_shot import ScoredLabel

__all__ = [
    "ANY_SCOPE",
    "Accounting",
    "CallContext",
    "CallScope",
    "Compared",
    "Comparisons",
    "FieldPaths",
    "ImageInput",
    "IncomingCall",
    "LabelQuery",
    "MethodMetrics",
    "MethodRules",
    "ModelInfo",
    "PixelArray",
    "QueryEmbeddings",
    "QueryTerm",
    "Readiness",
    "RequestLimits",
    "ResponseBound",
    "Scope",
    "ScoredLabel",
    "Service",
    "ServiceInfo",
    "State",
    "Timings",
    "TokenizedText",
    "code_of_cancellation",
    "internal_error",
    "kinds_of_calls",
    "pack_signs",
    "quantize_int8",
]
