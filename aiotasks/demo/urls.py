from django.urls import include, path

from aiotasks.demo import views

urlpatterns = [
    path("", views.index, name="index"),
    path("examine/", views.examine, name="examine"),
    path("surveys/<uuid:id>/cancel/", views.cancel, name="cancel"),
    path("surveys/<uuid:id>/retry/", views.retry, name="retry"),
    path("tasks/", include("aiotasks.urls")),  # {% aiotasks_progress %} follows its task there
    path("modules/", views.modules, name="modules"),
    path("modules/<str:name>/", views.module, name="module"),
]
