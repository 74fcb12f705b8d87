//go:build !linux

package local

import "errors"

func renameNoReplace(string, string) error { return errors.ErrUnsupported }
