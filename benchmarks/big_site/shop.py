"""The tasks of a shop: 30 paths, and so rows that a worker could run. What they do is no matter here."""

from aiotasks import task

__all__ = [
    "build_report",
    "call_webhook",
    "capture",
    "charge",
    "close_account",
    "export_orders",
    "geocode_address",
    "import_prices",
    "index_product",
    "invoice",
    "make_thumbnails",
    "merge_customers",
    "notify_warehouse",
    "order_supplies",
    "purge_cache",
    "rate_fraud",
    "refund",
    "reindex_category",
    "remind_of_invoice",
    "resize_image",
    "scan_upload",
    "send_newsletter",
    "send_receipt",
    "send_welcome",
    "ship",
    "sync_customer",
    "track_parcel",
    "translate_page",
    "update_stock",
    "warm_cache",
]


@task(timeout=60.0)
async def charge(order: int) -> None:
    """Nothing."""


@task
async def refund(order: int) -> None:
    """Nothing."""


@task
async def capture(order: int) -> None:
    """Nothing."""


@task
async def invoice(order: int) -> None:
    """Nothing."""


@task
async def remind_of_invoice(order: int) -> None:
    """Nothing."""


@task
async def send_receipt(order: int) -> None:
    """Nothing."""


@task
async def send_newsletter(order: int) -> None:
    """Nothing."""


@task
async def send_welcome(order: int) -> None:
    """Nothing."""


@task
def resize_image(order: int) -> None:
    """Nothing."""


@task
def make_thumbnails(order: int) -> None:
    """Nothing."""


@task
def scan_upload(order: int) -> None:
    """Nothing."""


@task
async def index_product(order: int) -> None:
    """Nothing."""


@task
async def reindex_category(order: int) -> None:
    """Nothing."""


@task
async def update_stock(order: int) -> None:
    """Nothing."""


@task
async def order_supplies(order: int) -> None:
    """Nothing."""


@task
async def ship(order: int) -> None:
    """Nothing."""


@task
async def track_parcel(order: int) -> None:
    """Nothing."""


@task
async def notify_warehouse(order: int) -> None:
    """Nothing."""


@task(timeout=30.0)
async def call_webhook(order: int) -> None:
    """Nothing."""


@task
async def sync_customer(order: int) -> None:
    """Nothing."""


@task
async def merge_customers(order: int) -> None:
    """Nothing."""


@task(timeout=600.0)
def export_orders(order: int) -> None:
    """Nothing."""


@task
def import_prices(order: int) -> None:
    """Nothing."""


@task(timeout=7200.0)
def build_report(order: int) -> None:
    """Nothing."""


@task
async def warm_cache(order: int) -> None:
    """Nothing."""


@task
async def purge_cache(order: int) -> None:
    """Nothing."""


@task
def geocode_address(order: int) -> None:
    """Nothing."""


@task
async def translate_page(order: int) -> None:
    """Nothing."""


@task
async def rate_fraud(order: int) -> None:
    """Nothing."""


@task
async def close_account(order: int) -> None:
    """Nothing."""
