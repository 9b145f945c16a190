"""Django's own apps with the keys that ``django_mongodb_backend`` needs, as its documentation has them."""

from __future__ import annotations

from django.contrib.admin.apps import AdminConfig
from django.contrib.auth.apps import AuthConfig
from django.contrib.contenttypes.apps import ContentTypesConfig

KEYS = "django_mongodb_backend.fields.ObjectIdAutoField"


class Admin(AdminConfig):
    default_auto_field = KEYS


class Auth(AuthConfig):
    default_auto_field = KEYS


class ContentTypes(ContentTypesConfig):
    default_auto_field = KEYS
