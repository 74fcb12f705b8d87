package restore

import (
	"context"
	"sync"

	"orlop/id"
	"orlop/snapshot"
)

// An inquiry is what the agent is asked of the files that are there: which of
// the blobs that they are to be made of they are made of. Its answers come from
// a goroutine that must not wait, and are heard by the one that walks.
type inquiry struct {
	asking    int                   // refs that there is no answer to
	questions map[uint64][]question // by file, in order

	ear    sync.Mutex
	spoken []answer
	speaks chan struct{} // there is something in spoken
}

// A question is whether a file has a blob in its place.
type question struct {
	name id.Blob
	piece
}

// An answer is to the next questions on a file.
type answer struct {
	n       uint64
	missing []bool
}

func (q *inquiry) init() {
	q.questions, q.speaks = map[uint64][]question{}, make(chan struct{}, 1)
}

// heard takes an answer.
func (q *inquiry) heard(n uint64, missing []bool) error {
	q.ear.Lock()
	defer q.ear.Unlock()
	q.spoken = append(q.spoken, answer{n, missing})
	select {
	case q.speaks <- struct{}{}:
	default:
	}
	return nil
}

// ask asks about pieces of one file.
func (j *job) ask(ctx context.Context, list []question) error {
	if len(list) == 0 {
		return nil
	}
	if err := j.hear(ctx, maxAsked-len(list)); err != nil {
		return err
	}
	n := list[0].file.n
	refs := make([]snapshot.Ref, len(list))
	for i, q := range list {
		refs[i] = snapshot.Ref{Name: q.name, Length: q.length}
	}
	j.asking += len(list)
	j.questions[n] = append(j.questions[n], list...)
	return j.out.Compare(n, refs)
}

// hear hears what the agent has answered, until no more than most are open.
// What a file does not have is planned.
func (j *job) hear(ctx context.Context, most int) error {
	for {
		j.ear.Lock()
		spoken := j.spoken
		j.spoken = nil
		j.ear.Unlock()
		for _, a := range spoken {
			if err := j.judge(ctx, a); err != nil {
				return err
			}
		}
		if j.asking <= most {
			return nil
		}
		select {
		case <-j.speaks:
		case <-j.out.Lost():
			return j.out.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (j *job) judge(ctx context.Context, a answer) error {
	list := j.questions[a.n]
	about, list := list[:len(a.missing)], list[len(a.missing):]
	if len(list) > 0 {
		j.questions[a.n] = list
	} else {
		delete(j.questions, a.n)
	}
	j.asking -= len(about)
	there := 0
	for i, q := range about {
		if !a.missing[i] || j.opt.InPlace.Dry {
			there++
		} else if err := j.plan(ctx, q.name, q.piece); err != nil {
			return err
		}
	}
	if there == 0 {
		return nil
	}
	return j.settle(about[0].file, there, false, nil)
}
