"""Send what waits: one process at a time, and again whatever a killed one may not have sent."""

from goscope_django.checkpoints import checkpointed
from outbox.models import Message


@checkpointed("outbox", restart=True)
def send_waiting(task, deliver):
    """``deliver(message, name)`` sends one; ``name`` is the same each time, so that the receiver can tell repeats.

    Raises ``TaskAlreadyRunning`` while another process sends.
    """
    waiting = Message.objects.filter(sent=False).select_related("order")
    for message in task.track(waiting, key="pk"):
        deliver(message, f"message-{message.pk}")
        Message.objects.filter(pk=message.pk).update(sent=True)
    return task.done
