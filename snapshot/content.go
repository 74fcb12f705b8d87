package snapshot

// MaxContentLevel is the highest level of a Content: with 4,096 refs a list
// it is never reached by a file that fits on a disk.
const MaxContentLevel = 7
