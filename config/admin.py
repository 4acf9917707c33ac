"""The admin site: Django's own, with our name and the product's sign-in page."""

from django.contrib.admin import AdminSite


class SignalboxAdminSite(AdminSite):
    site_header = "Signalbox"
    site_title = "Signalbox admin"
    index_title = "What is kept, and who may do what"
    site_url = "/"
