"""The recorded traces and their evidence."""

from recorded import recorded as recorded
