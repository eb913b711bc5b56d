// The precompiled test_headers.h belongs to a target, and a target needs a source.
