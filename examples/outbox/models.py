"""Messages that wait to be sent: written in the transaction that they tell of."""

from django.db import models, transaction


class Order(models.Model):
    mail = models.EmailField()


class Message(models.Model):
    order = models.ForeignKey(Order, on_delete=models.CASCADE)
    sent = models.BooleanField(default=False, db_index=True)


def place(mail):
    with transaction.atomic():  # both or neither
        order = Order.objects.create(mail=mail)
        Message.objects.create(order=order)
    return order
