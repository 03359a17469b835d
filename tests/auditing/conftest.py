"""The recorded traces and their evidence."""

from recorded import recorded as recorded
from printed import printed as printed
