"""The recorded traces and their evidence."""

from printed import printed as printed

from recorded import recorded as recorded
