"""The methods of the protocol's service, as rows of the gRPC port's table."""

from __future__ import annotations

from alignserve_server.api import ANY_SCOPE, MethodRules, Scope
from alignserve_server.kserve.messages import SERVICE
from alignserve_server.rpc.methods import Methods

_OF_MODELS = frozenset({Scope.EMBED, Scope.CLASSIFY})

# Orchestrators have no key, and their frequent checks would drown useful spans; see `rpc.methods`.
_PROBE = MethodRules(scopes=None, is_metered=False, is_traced=False, names_reason=True)
# Without quotas: clients read these along with the call that they are about to make.
_DESCRIPTION = MethodRules(scopes=ANY_SCOPE, is_metered=False, is_traced=False, names_reason=True)

METHODS: Methods = {
    SERVICE.full_name: {
        "ServerLive": _PROBE,
        "ServerReady": _PROBE,
        "ModelReady": _PROBE,
        "ServerMetadata": _DESCRIPTION,
        "ModelMetadata": _DESCRIPTION,
        "ModelConfig": _DESCRIPTION,
        "ModelStatistics": _DESCRIPTION,
        # Either scope admits a call, since the model is known only from the request.
        "ModelInfer": MethodRules(scopes=_OF_MODELS, names_reason=True),
        "ModelStreamInfer": MethodRules(scopes=_OF_MODELS, counts_items=True, names_reason=True),
    }
}
