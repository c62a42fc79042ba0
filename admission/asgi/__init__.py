"""The ASGI middleware, and what its options are made of."""

from admission.asgi.classify import Classification, Tenant
from admission.asgi.middleware import QoSAdmission

__all__ = ["Classification", "QoSAdmission", "Tenant"]
