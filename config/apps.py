"""The composition as an app of its own: its commands, and the admin site under our name."""

from django.apps import AppConfig
from django.contrib.admin import apps


class CompositionConfig(AppConfig):
    name = "config"


class AdminConfig(apps.AdminConfig):
    default_site = "config.admin.SignalboxAdminSite"
