import django.db.models.deletion
from django.db import migrations, models

from sessions_app.models.audit import digest_of

APPEND_ONLY = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON approvals_app_decision
    FOR EACH ROW EXECUTE FUNCTION signalbox_append_only();
"""
AS_BEFORE = "DROP TRIGGER append_only ON approvals_app_decision;"


def enter(apps, schema_editor):
    """Give each decision that was made before the chain began its entry, in their order."""
    Decision = apps.get_model("approvals_app", "Decision")
    AuditEntry = apps.get_model("sessions_app", "AuditEntry")
    AuditHead = apps.get_model("sessions_app", "AuditHead")
    head, _ = AuditHead.objects.get_or_create(pk=1)
    for decision in Decision.objects.select_related("by").order_by("created_at", "pk"):
        content = {
            "number": head.number + 1,
            "at": decision.created_at,
            "kind": "decision",
            "by": decision.by.username,
            "subject": decision.request_id,
            "data": {
                "request": decision.request_id,
                "user": decision.by_id,
                "verdict": decision.verdict,
                "reason": decision.reason,
                "digest": decision.digest,
                "channel": decision.channel,
                "address": "",
            },
            "previous": head.digest,
        }
        entry = AuditEntry.objects.create(**content, digest=digest_of(**content))
        Decision.objects.filter(pk=decision.pk).update(entry=entry)
        head.number, head.digest = entry.number, entry.digest
    head.save()


class Migration(migrations.Migration):

    dependencies = [
        ('approvals_app', '0001_initial'),
        ('sessions_app', '0003_audit'),
    ]

    operations = [
        migrations.AddField(
            model_name='decision',
            name='address',
            field=models.CharField(blank=True, default='', max_length=45),
        ),
        migrations.AddField(
            model_name='decision',
            name='entry',
            field=models.OneToOneField(null=True, on_delete=django.db.models.deletion.PROTECT, related_name='decision', to='sessions_app.auditentry'),
        ),
        migrations.RunPython(enter, migrations.RunPython.noop),
        # What is still to be checked would keep the table from being changed.
        migrations.RunSQL("SET CONSTRAINTS ALL IMMEDIATE", migrations.RunSQL.noop),
        migrations.AlterField(
            model_name='decision',
            name='entry',
            field=models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, related_name='decision', to='sessions_app.auditentry'),
        ),
        migrations.RunSQL(APPEND_ONLY, AS_BEFORE),
    ]
