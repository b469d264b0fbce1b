"""When two adapters are one."""

import pytest


def assert_same(adapter, other):
    assert list(adapter.modules) == list(other.modules)
    for path, factors in adapter.modules.items():
        for x, y in ((factors.a, other.modules[path].a), (factors.b, other.modules[path].b)):
            assert x.dtype == y.dtype
            assert x.tobytes() == y.tobytes()
        assert factors.scale == pytest.approx(other.modules[path].scale, rel=1e-15)
