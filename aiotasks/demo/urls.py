from django.urls import path

from aiotasks.demo import views

urlpatterns = [
    path("", views.index, name="index"),
    path("modules/<str:name>/", views.module, name="module"),
    path("modules/<str:name>/examine/", views.examine, name="examine"),
]
