package store

// SetHook has every call that changes the disk go by hook first.
func (d *Dir) SetHook(hook func(op, name string) error) { d.hook = hook }
